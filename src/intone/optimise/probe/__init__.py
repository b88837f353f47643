"""What is put on the PYTHONPATH of a foreign program: four files of the standard library alone"""
