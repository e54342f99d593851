-- Replaces a plan if its epoch is the expected one.
-- KEYS: the plan. ARGV: the expected epoch (0: there is no plan), the next epoch, rank, content.
-- Returns 1, or the plan that stands.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'rank', 'content')
if (held[1] or '0') ~= ARGV[1] then return held end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'rank', ARGV[3], 'content', ARGV[4])
return 1
