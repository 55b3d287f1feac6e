//! Lowering: a graph becomes a `Program`, the steps in order with a place in memory for every value.
//!
//! Dead nodes go; a cast to f32 behind a product is written by the product itself; `x^T dy` that only feeds an unguarded update
//! becomes one pass over the weights, which also yields `dy W^T` where that is wanted; a reshape is another name for the same memory;
//! and values whose lives do not overlap share a slot. A run allocates nothing.

use super::{Graph, Node, Op, Role, Value, ValueId, Work};
use crate::{units::Bytes, vocab::DType};

/// A piece of memory that one or several values use in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub bytes: usize,
    /// Kept between runs: inputs, parameters, state and outputs.
    pub persistent: bool,
}

/// One op to run.
pub type Step = Node;

/// What a backend runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub values: Vec<Value>,
    /// Slot of each value; `None` for values that no step touches.
    pub slot_of: Vec<Option<usize>>,
    pub slots: Vec<Slot>,
    pub steps: Vec<Step>,
    pub outputs: Vec<(String, ValueId)>,
    /// Whether products of fp32 operands round them to tf32, for tensor cores.
    pub rounds_to_tf32: bool,
    /// Weights whose numbers are all of e4m3 times one power of two when they are loaded, and that products alone read beside operands
    /// rounded by `RoundFp8`: a backend may keep them in 8 bits.
    pub rounded_weights: Vec<ValueId>,
}

impl Program {
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The value called `name`, if any step uses it.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        (0..self.values.len()).map(ValueId).find(|id| self.values[id.0].name == name && self.slot_of[id.0].is_some())
    }

    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// Parameters and state that the steps use, in order of definition.
    pub fn kept(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        let kept = |v: &Value| matches!(v.role, Role::Parameter { .. } | Role::State);
        self.values.iter().enumerate().filter(move |(k, v)| kept(v) && self.slot_of[*k].is_some()).map(|(k, v)| (ValueId(k), v))
    }

    /// The last step that updates weights and the flag that guards it, if one does: a run whose flag is 0 counts as no update.
    pub fn last_update(&self) -> Option<(usize, Option<ValueId>)> {
        let guard = |step: &Step| match step.op {
            Op::Update { guarded, .. } => Some(step.inputs.last().copied().filter(|_| guarded)),
            Op::LinearUpdate { .. } => Some(None),
            _ => None,
        };
        self.steps.iter().enumerate().rev().find_map(|(at, step)| guard(step).map(|flag| (at, flag)))
    }

    /// Work of one run.
    pub fn work(&self) -> Work {
        self.steps.iter().map(|step| self.step_work(step)).fold(Work::default(), Work::plus)
    }

    pub fn step_work(&self, step: &Step) -> Work {
        let values = |ids: &[ValueId]| ids.iter().map(|id| self.value(*id)).collect::<Vec<_>>();
        step.op.work(&values(&step.inputs), &values(&step.outputs))
    }

    /// Shapes of the first two operands: `[64, 6272] x [6272, 128]`.
    pub fn step_shape(&self, step: &Step) -> String {
        let operands = step.inputs.iter().take(2).map(|id| format!("{:?}", self.value(*id).shape));
        operands.collect::<Vec<_>>().join(" x ")
    }

    /// The narrowest type of floats among the operands and results of a step, of which one is as good as another where there is no float.
    pub fn step_dtype(&self, step: &Step) -> DType {
        let types = step.inputs.iter().chain(&step.outputs).map(|id| self.value(*id).dtype);
        types.filter(|dtype| dtype.is_float()).min_by_key(|dtype| dtype.size()).unwrap_or(DType::F32)
    }

    /// Bytes of what a run reads from outside.
    pub fn input_bytes(&self) -> u64 {
        let is_read = |(k, value): &(usize, &Value)| value.role == Role::Input && self.slot_of[*k].is_some();
        self.values.iter().enumerate().filter(is_read).map(|(_, value)| value.bytes() as u64).sum()
    }

    /// Memory of all slots.
    pub fn memory(&self) -> Bytes {
        Bytes(self.slots.iter().map(|s| s.bytes as u64).sum())
    }

    /// One step of this program as often as `sets` says, each time on operands and results of its own, which all lie apart. Operands come
    /// first among the values of a set, in the order in which the step reads them; what another step makes is an input here.
    pub fn alone(&self, step: &Step, sets: usize) -> Program {
        let mut touched: Vec<ValueId> = Vec::new();
        for id in step.inputs.iter().chain(&step.outputs) {
            if !touched.contains(id) {
                touched.push(*id);
            }
        }
        let mut alone = Program {
            values: Vec::new(),
            slot_of: Vec::new(),
            slots: Vec::new(),
            steps: Vec::new(),
            outputs: Vec::new(),
            rounds_to_tf32: self.rounds_to_tf32,
            rounded_weights: Vec::new(),
        };
        for set in 0..sets {
            let first = alone.values.len();
            let own = |ids: &[ValueId]| -> Vec<ValueId> {
                ids.iter().filter_map(|id| touched.iter().position(|one| one == id)).map(|at| ValueId(first + at)).collect()
            };
            for id in &touched {
                let value = self.value(*id);
                let is_made_elsewhere = value.role == Role::Intermediate && step.inputs.contains(id);
                let role = if is_made_elsewhere { Role::Input } else { value.role.clone() };
                let at = alone.values.len();
                alone.slots.push(Slot { bytes: value.bytes(), persistent: true });
                alone.slot_of.push(Some(at));
                alone.values.push(Value { name: format!("{}/{set}", value.name), role, ..value.clone() });
            }
            alone.rounded_weights.extend(
                own(&step.inputs)
                    .into_iter()
                    .zip(&step.inputs)
                    .filter_map(|(own, id)| self.rounded_weights.contains(id).then_some(own)),
            );
            let outputs = own(&step.outputs);
            alone.outputs.extend(outputs.iter().map(|id| (alone.values[id.0].name.clone(), *id)));
            alone.steps.push(Node { op: step.op.clone(), inputs: own(&step.inputs), outputs });
        }
        alone
    }
}

/// Lowers a graph.
pub fn lower(graph: &Graph) -> Program {
    let mut graph = graph.clone().without_dead_nodes();
    write_f32_directly(&mut graph);
    update_without_gradient(&mut graph);
    let (slot_of, slots) = plan(&graph);
    // What a reshape makes lies where its operand lies: there is nothing to run.
    let steps = graph.nodes.into_iter().filter(|node| !node.op.is_alias()).collect();
    Program {
        values: graph.values,
        slot_of,
        slots,
        steps,
        outputs: graph.outputs,
        rounds_to_tf32: false,
        rounded_weights: Vec::new(),
    }
}

/// A cast to f32 that alone reads a low-precision sum or product: its producer accumulates in f32 and can write that.
fn write_f32_directly(graph: &mut Graph) {
    let mut at = 0;
    while at < graph.nodes.len() {
        let node = &graph.nodes[at];
        if node.op == (Op::Cast { to: DType::F32 }) {
            let (from, to) = (node.inputs[0], node.outputs[0]);
            let producer = graph.producer(from).filter(|_| graph.consumers(from) == [at] && !graph.is_output(from));
            let writes = producer.filter(|p| {
                matches!(
                    graph.nodes[*p].op,
                    Op::MatMul { .. }
                        | Op::Linear { .. }
                        | Op::Conv2dGradWeight { .. }
                        | Op::SumLeading
                        | Op::SumFirst
                        | Op::EmbeddingGrad { .. }
                )
            });
            if let Some(producer) = writes {
                graph.nodes[producer].outputs[0] = to;
                graph.nodes.remove(at);
                continue;
            }
        }
        at += 1;
    }
}

/// `dW = x^T dy; update(W, dW)` becomes `linear_grad_update(W, x, dy)`, together with `dx = dy W^T` where such a node exists.
fn update_without_gradient(graph: &mut Graph) {
    let mut at = 0;
    while at < graph.nodes.len() {
        if let Some((product, back)) = fusible(graph, at) {
            let update = graph.nodes[at].clone();
            let Op::Update { optimizer, .. } = update.op else { unreachable!("fusible looks at updates only") };
            let (x, dy) = (graph.nodes[product].inputs[0], graph.nodes[product].inputs[1]);
            let mut inputs = vec![update.inputs[0], x, dy];
            inputs.extend(&update.inputs[2..]);
            let outputs = back.map(|b| graph.nodes[b].outputs.clone()).unwrap_or_default();
            let fused = Node { op: Op::LinearUpdate { optimizer }, inputs, outputs };
            // The one pass stands where dx is made, or else where the update stood.
            let place = back.unwrap_or(at);
            graph.nodes[place] = fused;
            let mut drop: Vec<usize> = [product, at].into_iter().filter(|n| *n != place).collect();
            drop.sort_unstable();
            for n in drop.into_iter().rev() {
                graph.nodes.remove(n);
            }
            at = 0;
            continue;
        }
        at += 1;
    }
}

/// For an update whose gradient is a plain `x^T dy` for it alone: that product's node, and the node of `dy W^T` if it can join.
fn fusible(graph: &Graph, at: usize) -> Option<(usize, Option<usize>)> {
    let node = &graph.nodes[at];
    let Op::Update { optimizer, guarded: false } = node.op else { return None };
    let (w, g) = (node.inputs[0], node.inputs[1]);
    let product = graph.producer(g).filter(|_| graph.consumers(g) == [at] && !graph.is_output(g))?;
    let Node { op: Op::MatMul { transpose_a: true, transpose_b: false }, inputs, .. } = &graph.nodes[product] else {
        return None;
    };
    let copy = node.inputs.get(2 + optimizer.state_arrays()).copied();
    if graph.shape(inputs[0]).len() != 2 || graph.shape(w).len() != 2 {
        return None;
    }
    // The weights as the forward pass read them: in low precision the copy, else W itself. x and dy must be of that type.
    let read = copy.unwrap_or(w);
    let storage = graph.dtype(read);
    if graph.dtype(inputs[0]) != storage || graph.dtype(inputs[1]) != storage {
        return None;
    }
    let readers: Vec<usize> =
        graph.consumers(read).into_iter().chain(graph.consumers(w)).filter(|reader| *reader != at).collect();
    let dx_flags = Op::MatMul { transpose_a: false, transpose_b: true };
    let back = readers.iter().copied().find(|r| {
        let node = &graph.nodes[*r];
        node.op == dx_flags
            && node.inputs == [inputs[1], read]
            && graph.dtype(node.outputs[0]) == storage
            && !graph.is_output(node.outputs[0])
    });
    // Moving the update up to dx's place is right only when nobody reads the old weights after it.
    let back = back.filter(|back| readers.iter().all(|r| r <= back) && *back < at && product_is_ready(graph, product, *back));
    // The product moves to that place: nothing in between may change what it reads.
    let place = back.unwrap_or(at);
    let reads = [memory_of(graph, inputs[0]), memory_of(graph, inputs[1])];
    let changes = |node: &Node| {
        node.op.written_inputs(node.inputs.len()).iter().any(|k| reads.contains(&memory_of(graph, node.inputs[*k])))
    };
    let (first, last) = (product.min(place), product.max(place));
    let moves_past_a_change = graph.nodes[first..last].iter().any(changes);
    (!moves_past_a_change).then_some((product, back))
}

/// The value whose memory `id` is: a reshape is another name for its operand.
fn memory_of(graph: &Graph, mut id: ValueId) -> ValueId {
    while let Some(made) = graph.producer(id).filter(|n| graph.nodes[*n].op.is_alias()) {
        id = graph.nodes[made].inputs[0];
    }
    id
}

/// Whether both operands of `product` exist before node `place`.
fn product_is_ready(graph: &Graph, product: usize, place: usize) -> bool {
    graph.nodes[product].inputs.iter().all(|id| graph.producer(*id).is_none_or(|made| made < place))
}

/// Gives every touched value a slot. Values that are one memory (a reshape and its operand) live from the first write to the last
/// read of any of them.
fn plan(graph: &Graph) -> (Vec<Option<usize>>, Vec<Slot>) {
    let count = graph.values.len();
    let mut same: Vec<usize> = (0..count).collect();
    fn root(same: &[usize], mut v: usize) -> usize {
        while same[v] != v {
            v = same[v];
        }
        v
    }
    for node in &graph.nodes {
        if node.op.is_alias() {
            let (from, to) = (root(&same, node.inputs[0].0), root(&same, node.outputs[0].0));
            same[to] = from;
        }
    }
    // First and last step of each group; kept groups live always.
    let mut life: Vec<Option<(usize, usize)>> = vec![None; count];
    let mut kept = vec![false; count];
    let mut bytes = vec![0; count];
    for (at, node) in graph.nodes.iter().enumerate() {
        for id in node.inputs.iter().chain(&node.outputs) {
            let group = root(&same, id.0);
            let (first, _) = life[group].unwrap_or((at, at));
            life[group] = Some((first, at));
            bytes[group] = bytes[group].max(graph.value(*id).bytes());
        }
    }
    for id in graph.ids() {
        let value = graph.value(id);
        let outlives = !matches!(value.role, Role::Intermediate) || graph.is_output(id);
        // An input that no step reads is still there to be written.
        let group = root(&same, id.0);
        if outlives && (life[group].is_some() || value.role == Role::Input || graph.is_output(id)) {
            kept[group] = true;
            bytes[group] = bytes[group].max(value.bytes());
            life[group] = life[group].or(Some((0, 0)));
        }
    }
    let mut slots: Vec<Slot> = Vec::new();
    let mut slot_of_group: Vec<Option<usize>> = vec![None; count];
    for group in 0..count {
        if kept[group] {
            slots.push(Slot { bytes: bytes[group], persistent: true });
            slot_of_group[group] = Some(slots.len() - 1);
        }
    }
    let mut free: Vec<usize> = Vec::new();
    for at in 0..graph.nodes.len() {
        let starting = (0..count).filter(|g| !kept[*g] && same[*g] == *g && life[*g].is_some_and(|(first, _)| first == at));
        for group in starting.collect::<Vec<_>>() {
            // The smallest free slot that fits, else the largest one, grown.
            let fits = free.iter().copied().filter(|s| slots[*s].bytes >= bytes[group]).min_by_key(|s| slots[*s].bytes);
            let slot = fits.or_else(|| free.iter().copied().max_by_key(|s| slots[*s].bytes));
            let slot = match slot {
                Some(slot) => {
                    free.retain(|s| *s != slot);
                    slots[slot].bytes = slots[slot].bytes.max(bytes[group]);
                    slot
                }
                None => {
                    slots.push(Slot { bytes: bytes[group], persistent: false });
                    slots.len() - 1
                }
            };
            slot_of_group[group] = Some(slot);
        }
        let ending = (0..count).filter(|g| !kept[*g] && same[*g] == *g && life[*g].is_some_and(|(_, last)| last == at));
        free.extend(ending.filter_map(|group| slot_of_group[group]));
    }
    let slot_of = (0..count).map(|v| slot_of_group[root(&same, v)]).collect();
    (slot_of, slots)
}
