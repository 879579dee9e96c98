import os

import helper


class See:
    def run(self, *, step_id, config, inputs=None, ctx=None):
        return {"helper": helper.NAME, "pid": os.getpid()}
