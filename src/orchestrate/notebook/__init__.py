"""Records as a notebook shows them, and as pandas takes them.

Nothing of a notebook is imported: IPython asks for `_repr_html_`, and pandas is there or is not.
"""
