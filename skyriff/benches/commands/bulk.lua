-- A thousand commands per request: earnings of one point for random accounts, as JSON or as NDJSON.
-- wrk … -s bulk.lua URL -- TOKEN json|ndjson FIRST STRIDE COUNT
-- Bodies are made before the first request, in pieces with a gap where every command's idempotency key has what
-- makes it new; a request only joins the pieces of one of them, which is one copy.
local BODIES, COMMANDS = 64, 1000

local function pieces_of_body(ndjson, first, stride, count)
    local pieces, before = {}, ndjson and "" or '{"commands":['
    for index = 1, COMMANDS do
        pieces[index] = string.format('%s{"idempotency_key":"%d-', before, index)
        before = string.format(
            '","user":"00000000-0000-4000-8000-%012d","do":"earn","bucket":"income","points":1,"reason":"bench"}%s',
            first + stride * math.random(0, count - 1), ndjson and "\n" or ",")
    end
    pieces[COMMANDS + 1] = ndjson and before or before:sub(1, -2) .. "]}"
    return pieces
end

function init(args)
    local ndjson = args[2] == "ndjson"
    -- A run of its own, so that no key was ever used before.
    math.randomseed(os.time())
    run = string.format("%d-%d-", os.time(), math.random(1, 1e9))
    sent, bodies = 0, {}
    for index = 1, BODIES do
        bodies[index] = pieces_of_body(ndjson, tonumber(args[3]), tonumber(args[4]), tonumber(args[5]))
    end
    headers = {
        ["Authorization"] = "Bearer " .. args[1],
        ["Content-Type"] = ndjson and "application/x-ndjson" or "application/json",
    }
end

function request()
    sent = sent + 1
    local body = table.concat(bodies[sent % BODIES + 1], run .. sent)
    return wrk.format("POST", "/v1/commands:batch", headers, body)
end
