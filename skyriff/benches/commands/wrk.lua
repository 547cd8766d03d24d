-- One command per request: an earning of one point, for a random account of many or for a single one.
-- wrk … -s commands.lua URL -- TOKEN ACCOUNTS
local thread_count = 0

function setup(thread)
    thread:set("id", thread_count)
    thread_count = thread_count + 1
end

function init(args)
    token, accounts = args[1], tonumber(args[2])
    -- A run of its own, so that no key was ever used before.
    math.randomseed(os.time() * 16 + id)
    run = string.format("%d-%d-%d", os.time(), id, math.random(1, 1e9))
    sent = 0
end

function request()
    sent = sent + 1
    local account = math.random(1, accounts)
    local path = string.format("/v1/users/00000000-0000-4000-8000-%012d/earnings", account)
    return wrk.format("POST", path, {
        ["Authorization"] = "Bearer " .. token,
        ["Content-Type"] = "application/json",
        ["Idempotency-Key"] = run .. "-" .. sent,
    }, '{"bucket":"income","points":1,"reason":"bench"}')
end
