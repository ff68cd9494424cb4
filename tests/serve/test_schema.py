"""schemathesis finds no fault in what the service's own schema promises."""

import httpx
import hypothesis
import pytest
import schemathesis
from running_service import KEY
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def run(running, examples):
    """Send generated requests to each route, and return the statuses by route."""
    document = httpx.get(f"{running.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=running.url)
    return {operation.path: try_out(operation, examples) for operation in (result.ok() for result in schema.get_all_operations())}


def try_out(operation, examples):
    """Send requests that fit the schema and such as do not, and return their statuses."""
    fitting, other = (operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)
    statuses = []

    @hypothesis.settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=fitting | other)
    def send(case):
        response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=100)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    send()
    return statuses


def test_the_schema_is_complete(running):
    document = httpx.get(f"{running.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"] and operation["description"], path
            if operation.get("requestBody"):
                assert all("example" in content or "examples" in content for content in operation["requestBody"]["content"].values())
                assert {"200", "400", "401", "413", "415", "422", "429", "503"} <= operation["responses"].keys()
    assert document["security"] == [{"key": []}] and {"MediaRequest", "ChatRequest", "SegmentResponse"} <= document["components"]["schemas"].keys()


def test_generated_requests_get_what_the_schema_says(running):
    found = run(running, 15)
    assert {"/v1/segment", "/v1/track", "/v1/chat/completions", "/health"} <= found.keys()


@pytest.mark.slow
def test_many_generated_requests_get_what_the_schema_says(running):
    assert sum(map(len, run(running, 500).values())) > 2000
