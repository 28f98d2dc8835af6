"""Params and operations put together: the detector and its parts."""
