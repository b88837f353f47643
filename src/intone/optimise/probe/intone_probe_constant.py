"""Finds constants that a program computes anew in every step: masks, positions, tables of angles.

For three steps every operator passes through here. One is constant where it draws nothing and everything that it reads
is constant: what the same step made so, tensors that lie there unchanged since the step before (no parameter that is
trained), sizes, numbers. What is later written over by something that changes is none. The first step learns which
tensors stay; what the other two compute alike, from the same origins at the same line, could have been kept.
"""

import importlib
import sys
import time

NUM_STEPS = 3
# they read the shape of another tensor, not what it holds
BY_SHAPE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty")
MARK = "_intone_made"  # on tensors: (number of the step, Memory or None, origin)
PARTS = ("forward", "own code", "data")  # kinds of work whose constants a person can keep


class Memory:
    """The memory of a constant, which its views share. spoiled: something that changes was written into it."""

    def __init__(self):
        self.spoiled = False
        self.history = 0  # of constants that were written into it


class Constants:
    """place_of(frame): (part, path, line, function), as the look tells them. begin(), then step() behind each step."""

    def __init__(self, probe, place_of):
        self.probe, self.place_of = probe, place_of
        self.number = 0  # of the step
        self.made = set()  # places in memory of what the first step made
        self.kept = []  # tensors from outside that it read: kept alive, so that no other takes their identity
        self.versions = {}  # id of one of them -> how often it had been written to
        self.lasting = set()  # ids of those that the second step found as they were
        self.trained = set()
        self.seen: list = [{}, {}]  # of the later steps: (operator, path, line, origin) -> [(seconds, Memory)]

    def begin(self):
        """Starts to listen; False where this torch cannot."""
        try:
            mode_class = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode
            self.flatten = importlib.import_module("torch.utils._pytree").tree_flatten
        except (ImportError, AttributeError):
            self.probe.notes.append("this torch does not tell its operators: constants were not looked for")
            return False
        self.trained = {
            id(weight) for optimizer in self.probe.optimizers.values() for group in optimizer.param_groups
            for weight in group["params"]
        }  # fmt: skip
        constants = self

        def hear(mode, func, types, args=(), kwargs=None):
            return constants.hear(func, args, kwargs or {})

        # operators that take functions come to a mode only where it says that it knows them, and fail elsewhere
        ways = {"__torch_dispatch__": hear, "supports_higher_order_operators": True}
        self.mode = type("Listening", (mode_class,), ways)()
        self.mode.__enter__()
        return True

    def step(self):
        """Behind every step; True where enough was heard."""
        self.number += 1
        if self.number < NUM_STEPS:
            return False
        self.mode.__exit__(None, None, None)
        self.kept = []
        return True

    def found(self):
        """[[seconds of a step, operators, path, line]] of what two steps computed alike, the slowest line first."""
        lines: dict = {}
        for key, entries in self.seen[1].items():
            both = [[s for s, memory in one if not memory.spoiled] for one in (self.seen[0].get(key, []), entries)]
            count = min(map(len, both))
            if count:
                names, spent = lines.setdefault(key[1:3], (set(), []))
                names.add(key[0])
                spent.append(min(sum(sorted(one)[:count]) for one in both))
        rows = [[sum(spent), ", ".join(sorted(names)), *place] for place, (names, spent) in lines.items()]
        return sorted(rows, key=lambda row: -row[0])

    # --- operators ------------------------------------------------------------------------------------------------

    def hear(self, func, args, kwargs):
        if not hasattr(func, "_schema"):
            return func(*args, **kwargs)
        torch = self.probe.torch
        leaves = self.flatten((args, kwargs))[0]
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if self.number == 0:
            self.learn(inputs)
            made = func(*args, **kwargs)
            self.made.update(self.where(tensor) for tensor in self.tensors_in(made))
            return made
        name = func._schema.name.split("::")[-1]
        origins = [] if name in BY_SHAPE else [self.origin_of(tensor) for tensor in inputs]
        is_constant = None not in origins and torch.Tag.nondeterministic_seeded not in func.tags
        self.probe.sync()
        begin_s = time.perf_counter()
        made = func(*args, **kwargs)
        self.probe.sync()
        seconds = time.perf_counter() - begin_s
        numbers = [str(tuple(leaf.shape)) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
        origin = hash((name, *numbers, *origins)) if is_constant else None
        memory = self.mark(func, args, kwargs, inputs, made, origin)
        if memory is not None:
            place = self.place_of_caller()
            if place is not None:
                key = (name, *place, origin)
                self.seen[self.number - 1].setdefault(key, []).append((seconds, memory))
        return made

    def mark(self, func, args, kwargs, inputs, made, origin):
        """Notes on tensors what they are now; returns the memory of what a constant operator computed, else None."""
        arguments, returns = func._schema.arguments, func._schema.returns
        given = dict(zip([argument.name for argument in arguments], args))  # noqa: B905  Python 3.8 has no strict
        given.update(kwargs)
        written = [
            tensor for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in self.tensors_in(given.get(argument.name))
        ]  # fmt: skip
        if written:
            return self.write_over(written, origin)
        is_view = any(entry.alias_info is not None for entry in returns)
        memory = None
        if origin is not None:
            memory = (self.memory_of(inputs[0]) if is_view and inputs else None) or Memory()
        outputs = self.tensors_in(made)
        for tensor in outputs:
            setattr(tensor, MARK, (self.number, memory, origin))
        # a view computes nothing, and what it takes here is the listening
        return memory if outputs and not is_view else None

    def write_over(self, written, origin):
        """Tensors that an operator wrote into: constant where it was and they are, else spoiled."""
        memory = None
        for tensor in written:
            memory = self.memory_of(tensor)
            if origin is None:
                if memory is not None:
                    memory.spoiled = True
                setattr(tensor, MARK, (self.number, None, None))
            elif memory is None:
                memory = Memory()
                setattr(tensor, MARK, (self.number, memory, origin))
            else:
                memory.history = hash((memory.history, origin))
        return memory if origin is not None else None

    # --- tensors --------------------------------------------------------------------------------------------------

    def tensors_in(self, value):
        torch = self.probe.torch
        return [leaf for leaf in self.flatten(value)[0] if isinstance(leaf, torch.Tensor)]

    def learn(self, inputs):
        """Keeps what the first step reads and did not make."""
        for tensor in inputs:
            if id(tensor) not in self.versions and self.where(tensor) not in self.made:
                self.kept.append(tensor)
                self.versions[id(tensor)] = tensor._version

    def where(self, tensor):
        try:
            return tensor.data_ptr()
        except RuntimeError:
            return 0  # it has no memory of its own

    def memory_of(self, tensor):
        """Of a tensor that was made in this step as a constant, else None."""
        mark = getattr(tensor, MARK, None)
        return mark[1] if mark is not None and mark[0] == self.number else None

    def origin_of(self, tensor):
        """What a constant was made from and by; None: it is no constant."""
        mark = getattr(tensor, MARK, None)
        if mark is not None and mark[0] == self.number:
            _, memory, origin = mark
            return None if memory is None or memory.spoiled else hash((origin, memory.history))
        if tensor.requires_grad or id(tensor) in self.trained or self.versions.get(id(tensor)) != tensor._version:
            return None
        if self.number == 1 and mark is None:
            self.lasting.add(id(tensor))
        return id(tensor) if id(tensor) in self.lasting else None

    def place_of_caller(self):
        """(path, line) of the program that asked for an operator; None: a way back or an optimizer did."""
        part, path, line, _ = self.place_of(outside(sys._getframe(1)))
        return (path, line) if path and part in PARTS else None


def outside(frame):
    """The frame that asked for an operator: around this file, and around what torch lays between."""
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        is_between = path == __file__.replace("\\", "/") or "/torch/_dynamo/" in path
        if not is_between and not path.endswith("/torch/_compile.py"):
            break
        frame = frame.f_back
    return frame
