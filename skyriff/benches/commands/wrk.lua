-- One command per request: an earning of one point, for a random account of many or for a single one.
-- wrk … -s wrk.lua URL -- TOKEN one FIRST STRIDE COUNT [FILE …]
-- Accounts are numbers from FIRST on, STRIDE apart; with files, the n-th thread takes those in the n-th file.
-- BENCH_NODES has a host:port for each thread, where one wrk loads several servers.
local thread_count = 0
local nodes = {}
for host, port in string.gmatch(os.getenv("BENCH_NODES") or "", "([^:,]+):(%d+)") do
    nodes[#nodes + 1] = wrk.lookup(host, port)[1]
end

function setup(thread)
    thread:set("id", thread_count)
    thread_count = thread_count + 1
    if nodes[thread_count] then
        thread.addr = nodes[thread_count]
    end
end

function init(args)
    token, first, stride, count = args[1], tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
    if args[6 + id] then
        listed = {}
        for line in io.lines(args[6 + id]) do
            listed[#listed + 1] = tonumber(line)
        end
    end
    -- A run of its own, so that no key was ever used before.
    math.randomseed(os.time() * 16 + id)
    run = string.format("%d-%d-%d", os.time(), id, math.random(1, 1e9))
    sent = 0
end

function request()
    sent = sent + 1
    local account = listed and listed[math.random(#listed)] or first + stride * math.random(0, count - 1)
    local path = string.format("/v1/users/00000000-0000-4000-8000-%012d/earnings", account)
    return wrk.format("POST", path, {
        ["Authorization"] = "Bearer " .. token,
        ["Content-Type"] = "application/json",
        ["Idempotency-Key"] = run .. "-" .. sent,
    }, '{"bucket":"income","points":1,"reason":"bench"}')
end
