"""Chat templates that behave like those of well-known models, each in the way that makes masking hard."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Like Llama-3: trims contents, begins with a beginning token, closes with a token that is not the tokenizer's eos.
LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Like Qwen3: takes the reasoning out of earlier turns, and gives the last one a <think> block even if it has none.
QWEN3 = """{%- set last = namespace(user=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- set content, thought = message.content, '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > last.user %}
        {{- '<think>\n' + thought + '\n</think>\n\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""

# Like Gemma-3: the system message becomes part of the first user turn, the assistant is called model, roles alternate.
GEMMA3 = """{{- bos_token }}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- (system if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""

# Like DeepSeek-R1: asks for a thought when generating, and writes none in the data.
DEEPSEEK = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<|user|>' + message.content }}"
    "{% else %}{{ '<|assistant|>' + message.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)

# Like the first Llama-3: asks for an answer at the end of everything, wanted or not.
ASKING = CHATML.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")

# Closes no turn: the end token has to come from elsewhere.
UNCLOSED = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"

# Marks the turns itself, with whitespace control and line breaks inside and around the tags.
MARKED = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation -%}
            {{ message.content }}<|im_end|>
        {% endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
"""

# Like Qwen3 with tools: calls within the assistant's turn, results of one step together in a turn of the user, and an
# empty thought written into the prompt when thinking is switched off.
QWEN3_TOOLS = """{%- for message in messages %}
    {%- if message.role in ('system', 'user') %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""

# Like Llama-3.1: a call takes the place of the content, results are quoted, the day is written at the top.
LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set first = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + first + '<|eot_id|>' }}
{%- if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (message.content | tojson) + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

# Like Mistral: no header of the assistant and no prompt for generation; the system message goes to the last user turn.
MISTRAL = """{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if system else messages) %}
    {%- if message.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [{"name": "' + message.tool_calls[0].function.name + '"}]' + eos_token }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Like Gemma-4: writes the results of tools within the turn that called them.
FORWARD = """{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<start_of_turn>' + message.role + '\n' + message.content }}
    {%- if message.role == 'assistant' %}
        {%- for k in range(loop.index0 + 1, messages | length) %}
            {%- if messages[k].role != 'tool' %}{% break %}{% endif %}
            {{- '[' + messages[k].content + ']' }}
        {%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>assistant\n' }}{% endif %}
"""
NESTED = FORWARD.replace(
    "for k in range(loop.index0 + 1, messages | length)", "for later in messages[loop.index0 + 1 :]"
)
NESTED = NESTED.replace("messages[k]", "later")

# Like TRL's training variant of Phi-3: marks an end token that stands behind the loop.
BEHIND = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}"
)
