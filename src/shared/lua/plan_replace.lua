-- Replaces a plan if its epoch is the expected one.
-- KEYS: the plan. ARGV: the expected epoch (0: there is no plan), the next epoch, rank, digest, content.
-- Returns 1, or the plan that stands.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'rank', 'digest', 'content')
if (held[1] or '0') ~= ARGV[1] then return held end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'rank', ARGV[3], 'digest', ARGV[4], 'content', ARGV[5])
return 1
