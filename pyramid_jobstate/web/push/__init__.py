"""Push: streams of states, to pages that would poll otherwise.

Imported under ASGI only, by :mod:`pyramid_jobstate.asgi`. In reading order: `watch`
hears of changes, `stream` renders jobs as events, `hub` feeds the streams of a process,
`response` makes one of a view's answer, and `bridge` makes up for what a2wsgi lacks.
"""
