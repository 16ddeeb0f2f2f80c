-- Which vFM a request is for, as the header x-fmplex-vfm, by which routes are chosen.
--
-- HTTP has it in the path. A gRPC message has it in its first field: of unary calls, which are read whole before they
-- go on. Of a stream nothing is known before its first message, so its client says it: metadata fmplex-vfm. The same
-- header says to whose servers a request goes that is for no model.

local SERVICE = "/inference.GRPCInferenceService/"
local LONGEST = 128

-- The string in field 1 of a gRPC message, nil where there is none.
local function first_field(bytes)
  -- a byte that is 1 where it is compressed, four of its length, then the tag of field 1 and the string's length
  if #bytes < 7 or bytes:byte(1) ~= 0 or bytes:byte(6) ~= 10 then
    return nil
  end
  local length, start = bytes:byte(7), 8
  if length >= 128 then -- in two bytes: longer than any name
    return nil
  end
  if length == 0 or #bytes < start + length - 1 then
    return nil
  end
  return bytes:sub(start, start + length - 1)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or ""
  local name = path:match("^/v2/models/([^/?]+)")
  if path == "/v2/models/stats" then -- of all models
    name = nil
  end
  if name == nil and path:sub(1, #SERVICE) == SERVICE then
    local method = path:sub(#SERVICE + 1)
    if method:sub(1, 5) == "Model" and method ~= "ModelStreamInfer" then
      local body = handle:body()
      if body ~= nil then
        name = first_field(body:getBytes(0, math.min(body:length(), LONGEST + 16)))
      end
    end
  end
  -- asked for anew: what was there before the body was waited for is out of scope
  headers = handle:headers()
  name = name or (headers:get("fmplex-vfm") or "-"):match("^%s*(.-)%s*$")
  headers:replace("x-fmplex-vfm", name)
  handle:clearRouteCache()
end
