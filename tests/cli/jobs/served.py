"""The tiny job with a parameter server, recorded."""

import dataclasses

from tiny import job as tiny

from leptonai import Elastic, ParameterServer

job = dataclasses.replace(
    tiny, parameter_server=ParameterServer(consistency="asp", record=True), elastic=Elastic(spare=0)
)
