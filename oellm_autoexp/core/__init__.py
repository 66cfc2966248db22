"""Pure: no I/O, no clock, no logging; the standard library only."""
