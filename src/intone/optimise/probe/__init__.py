"""What is put on the PYTHONPATH of a foreign program: three files of the standard library alone"""
