"""Files that would harm who opens them, made anew by each test run, and the watch over what opening them does.

`models` and `patches` hold the kinds; each builder's docstring says what its file would do. `watch` opens a file in a
process of its own and reports what happened.
"""
