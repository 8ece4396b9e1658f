"""The lab: every figure, table and proposition of the paper (arXiv:2410.09692), and the questions it leaves open, as studies.

Each study is one file in `studies`: what it runs, what it claims, how each claim is judged, and its picture. It is run from the
root of the repository with `python -m paper NAME`. The lab is not part of the installed library and uses it as any user would.
"""
