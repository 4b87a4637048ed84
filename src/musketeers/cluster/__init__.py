"""The same run on many machines, which Ray brings together."""
