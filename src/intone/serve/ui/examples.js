// What to ask the model of a default run: one question for each kind of thing that it learns.

export const EXAMPLES = [
  { skill: "Story", prompt: "This morning Anna went to the garden. Anna picked up the cup. Later Anna walked to the library. Where is the cup now?" },
  { skill: "Spelling", prompt: "How do you spell balloon?" },
  { skill: "Counting", prompt: "How many times can you find e in letter?" },
  { skill: "Arithmetic", prompt: "What is 127 + 348?" },
  { skill: "Dates", prompt: "Today is Monday. Which day is it in 4 days?" },
  { skill: "Sorting", prompt: "Here are some words: planet, berries, small. Put them in order." },
];
