"""What programs use of PySpark 4.3: functions and results are pickled by cloudpickle, in other processes of a JVM."""

import cloudpickle


class SparkContext:
    def __init__(self, master):
        assert master.startswith("local[")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def parallelize(self, items, n_slices):
        assert n_slices > 0
        return _Collection(items)


class _Collection:
    def __init__(self, items):
        self._items = list(items)

    def map(self, function):
        function = cloudpickle.dumps(function)
        return _Collection(cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(function)(i))) for i in self._items)

    def collect(self):
        return self._items
