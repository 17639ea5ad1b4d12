from array import array

def cut(
    data: bytes | bytearray | memoryview,
    start: int,
    end: int,
    table: array[int],
    minimum: int,
    average: int,
    maximum: int,
    mask_small: int,
    mask_large: int,
) -> int: ...
