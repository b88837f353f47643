"""Behaviour that no reading of code can show: a program's generation and batches are run and looked at"""
