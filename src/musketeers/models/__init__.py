"""Every model behind one face: what it sees, how it is trained and tuned, what it needs."""
