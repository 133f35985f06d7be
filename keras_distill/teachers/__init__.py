"""Teachers: running a model, a function or a torch module as the teacher.

This package has no public names. A `Distiller` and `record_teacher` take any
teacher and wrap it in a `LiveTeacher`.
"""
