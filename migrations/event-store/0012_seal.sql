-- Sealing only reads the log: what it signs is kept in the object storage, so that a database that is set back to an earlier
-- state does not take the signatures with it. A role of its own, because whoever has the key that signs needs nothing else.

GRANT USAGE ON SCHEMA public TO skyriff_seal;
GRANT SELECT ON store, heads, events TO skyriff_seal;
