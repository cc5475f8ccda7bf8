"""
The recommendation engine: plain Python that knows no orchestrator and no experiment tracker.

Packages import only those above them in this list: ``columns``, ``errors``, ``artifacts``, ``data``, ``models``,
``embeddings``, ``index``, ``recommenders``, ``evaluation``, ``store``.
"""
