"""What runs inside somebody else's program: one file of the standard library, put in front of its PYTHONPATH"""
