"""A finished run behind HTTP: answers, fresh interactions, operation."""
