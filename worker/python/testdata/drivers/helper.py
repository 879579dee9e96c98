NAME = "drivers"


class Refused(Exception):
    pass
