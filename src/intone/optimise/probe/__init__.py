"""What is put on the PYTHONPATH of a foreign program: seven files of the standard library alone"""
