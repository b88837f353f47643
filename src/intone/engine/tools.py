from intone.engine.calculator import calculator
__all__ = ["calculator"]
