"""What is slow or wrong in a training or generation code base, how to fix it, and whether the fix was real"""
