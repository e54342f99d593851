-- Writes a plan that the engine has lost: the higher epoch wins, and of one epoch the higher rank.
-- KEYS: the plan. ARGV: the epoch that the replica knows, the next epoch, rank, digest, content.
-- Returns 1, or the plan that stands.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'rank', 'digest', 'content')
if held[1] then
  local epoch, known = tonumber(held[1]), tonumber(ARGV[1])
  local rank = tonumber(held[2] or '')
  -- The caller reports a plan with a broken epoch or rank. It is not replaced here.
  if not epoch or not rank or epoch > known then return held end
  if epoch == known and rank >= tonumber(ARGV[3]) then return held end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'rank', ARGV[3], 'digest', ARGV[4], 'content', ARGV[5])
return 1
