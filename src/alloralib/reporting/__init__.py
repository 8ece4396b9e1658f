"""Records in, pictures and pages out; imports no torch."""
