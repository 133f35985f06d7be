"""Graphs: reading the layers of a Keras model, and copying the model.

Private to this library. Distillation and compression share it.
"""
