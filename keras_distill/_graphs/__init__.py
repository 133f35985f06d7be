"""Layer graphs: finding layers, walking the graph, and copying the model.

Private to this library. Distillation and compression both use it.
"""
