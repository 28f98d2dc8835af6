"""Pictures of what the detector found and of how it works."""
