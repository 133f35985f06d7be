"""Chapter 2: what the teacher answers."""
