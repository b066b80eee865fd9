from evomerge.errors import without_secrets


def test_values_of_secret_variables_and_users_in_urls_are_left_out(monkeypatch):
    monkeypatch.setenv("SERVICE_API_KEY", "sesame-123")
    monkeypatch.setenv("SERVICE_NAME", "plain-text")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert without_secrets("postgresql://me:ses@me@host/x") == "postgresql://…@host/x"
    text = "GET https://me:sesame@host/x?key=sesame-123 of plain-text"
    assert without_secrets(text) == "GET https://…@host/x?key=$SERVICE_API_KEY of plain-text"
