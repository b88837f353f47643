"""Our own CPU kernels in C++: built once per machine, checked against plain PyTorch, used where they are faster"""
