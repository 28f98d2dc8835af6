"""Pictures in: reading, resizing, normalising, padding."""
