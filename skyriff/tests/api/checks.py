"""What the tool does not bring along."""

import schemathesis


@schemathesis.check
def no_server_error(ctx, response, case):
    """No 5xx but one: positions are made up here, and some are later than any database has come."""
    if response.status_code < 500:
        return
    assert response.status_code == 503, f"server error {response.status_code}"
    problem = response.json()
    assert problem["type"] == "/problems/not-that-fresh-yet", f"server error: {problem}"
    assert "Skyriff-At-Least" in (case.headers or {}), "not that fresh, although nothing was asked for"
