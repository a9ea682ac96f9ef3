"""Operators of our own for the CPU: C++ in ``native``, compiled by ``build``, called through ``ops``."""
