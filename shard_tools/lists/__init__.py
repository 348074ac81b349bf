"""How data sets list their videos and classes: one file per layout, which layouts.py tries in order."""
