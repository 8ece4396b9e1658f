"""Pictures and pages from records. Imports no torch."""
