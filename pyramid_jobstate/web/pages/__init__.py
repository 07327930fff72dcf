"""The pages: jobs as HTML, at the URLs of their JSON and with the same rights.

Only :mod:`pyramid_jobstate.pages` imports this, since it needs the extra.
"""
