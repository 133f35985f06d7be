"""Teachers: running a model, a function or a torch module as the teacher.

This package has no public names. `Distiller` and `record_teacher` accept any
teacher and wrap it in a `LiveTeacher` (`_live_teacher.py`).
"""
