"""Longer runs that reproduce published numbers; each writes its result beside itself."""
