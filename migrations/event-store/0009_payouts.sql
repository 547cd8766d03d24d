-- The process that pays withdrawals has to know where the money goes: it may read the keys of persons, and make none.
GRANT SELECT ON person_keys TO skyriff_process;
