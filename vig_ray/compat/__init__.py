"""What leans on the inside of other libraries: one small function for each thing, with the reason for it.

Each library is imported when a function is called: scoring works where only some of them are installed.
"""
