-- Takes or renews the lease.
-- KEYS: the lease, the note. ARGV: the holder, its time in ms, the note, the time of the note in ms,
-- and 1 if the holder knows that it has the lease.
-- Returns 0 if another one holds it, 1 if it is renewed, and the note if it is taken.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
local renew = holder and ARGV[5] == '1'
-- Before the first write: an error must leave nothing behind.
local note = not renew and (redis.call('GET', KEYS[2]) or '')
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not renew then return note end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return 1
