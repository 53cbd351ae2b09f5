"""The thin API of arrays: checked arguments become one job, and its result an array or a number."""
