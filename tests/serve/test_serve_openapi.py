"""schemathesis, which sends what the server's own description allows and what it does not."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from maypole.engine import Engine, EngineConfig
from maypole.serve.guard import Limits
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import app_of, call

CHECKS: Any = [
    not_a_server_error, negative_data_rejection, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip

engine = Engine(lm_of(max_position_embeddings=64), EngineConfig(max_seqs=16))
app = app_of(engine, limits=Limits(max_tokens=4), hosts=("*",), dynamic=True)
# What is too long is refused before it is read.
REFUSED = {"checks": {"negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "415", "422"]}}}
schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(REFUSED))


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_as_described(case: Case):
    answer = case.call_and_validate(checks=CHECKS)
    assert answer.status_code < 500


def test_every_route_is_described_with_its_body_and_errors():
    found = call(app, "GET", "/openapi.json").json()
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert ("requestBody" in operation) is (method in ("post", "put")), path
            assert operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    chat = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages"} == set(chat["required"])
    assert "ResponseFormat" in found["components"]["schemas"]

